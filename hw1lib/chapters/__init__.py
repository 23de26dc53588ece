"""What the notebooks call: plain functions of results that draw, tabulate and say; one file a notebook."""
