"""Functions that notebooks call to draw results, tabulate them, and describe them in sentences.

One module per notebook: ch00_data, ch01_pretraining, ch02_finetuning, ch03_embeddings, ch04_segmentation,
ch05_segment_anything. Further modules:

- significance: tests between settings and controls (notebook 02)
- trials: how the demo's settings were chosen (notebook 02)
- original: results, settings and defects of the original report
- architectures: tables, diagrams and descriptions of the segmentation networks (notebook 04)
- tables: headings and formats of table columns, Markdown
- phrases: numbers, intervals and comparisons as text
- style: figure style, saving, and shared drawing functions
"""
