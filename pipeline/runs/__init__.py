"""A run: what it is asked, how its work goes round, how it ends, what it says."""
