"""The data check.

Modules:
    report: check a data root; the result as JSON or text.
    doctor: everything wrong with the data of one problem.
    duplicates, leakage: copies of images, and validation tiles that continue a training tile.
    resplit: split the tiles again so that no scene is on both sides.
"""
