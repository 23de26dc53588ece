"""Metrics: plain functions from arrays to numbers.

- collapse: spread of features: deviation, effective rank, detection of collapse
- iou: confusion matrix, IoU, mIoU, pixel accuracy
- partitions: fit of segments to land cover: coverage, ASA, oracle, vote, boundaries
- projection: PCA and t-SNE of activations, silhouette, purity
- statistics: confidence intervals, McNemar's test, Holm's correction
"""
