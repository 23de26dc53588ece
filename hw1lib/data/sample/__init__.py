"""The Earth sample: real satellite windows with real land cover, in the course's layout."""
