"""Networks, without training loops or figures.

- byol: BYOL and SimSiam on byol-pytorch: learner, loss, target network
- ema: exponential moving average of a network's weights
- fast_conv: convolution layer that is faster than PyTorch's on CPUs
- pretrained: the course's backbone and torchvision's weights, read without running code
- resnet: ResNet50, its features, and the classifier of settings A to E
- sam: SAM's weights and its everything mode
- segmenters: the three networks of Problem 2
- superpixels: SLIC and Felzenszwalb; masks and partitions
- weights: optional weight files: where they are, and how to download them
"""
