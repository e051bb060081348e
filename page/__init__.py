"""A page to look at, and the analysis of the user study."""
