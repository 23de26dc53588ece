"""What is on disk: the course layout, the Earth sample, decoded images, land-cover classes."""
