"""Numbers in, numbers out: the measures of the report as plain functions of arrays."""
