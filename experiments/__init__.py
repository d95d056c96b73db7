"""Recipes, their results, and the programs that measure them and make tables of them."""
