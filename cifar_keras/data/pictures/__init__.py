"""Anyone's pictures: list them, decode them once into a cache, and make a data set of them."""
