"""What depends on what, and where its results lie."""
