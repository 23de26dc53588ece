"""The data on disk.

Modules:
    layout: find the splits of a data root in the course's layout, or say what is wrong with it.
    splits: Split and Tiles, the images of one split and their labels.
    images: decode images and masks, and cache whole splits as arrays.
    landcover: the seven land-cover classes and the colours of masks.
    csv_rows, listing: read CSV files, and match file names.
    hashes: hash data, once per change of a file.
    earth: the Earth sample, the default data.
    check: the data check, and a new split of the tiles by scene.
"""
