"""The library behind the HW1 workbook; notebooks start at `hw1lib.workbook`."""
