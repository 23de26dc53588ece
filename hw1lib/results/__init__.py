"""From plain results to numbers, pictures, sentences and the report."""
