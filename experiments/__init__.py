"""Recipes, their results, and what makes tables of them."""
