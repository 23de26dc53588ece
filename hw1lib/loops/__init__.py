"""Training: the loop, its parts, and one module for each experiment.

Experiments (functions that run a step):
    pretrain: self-supervised (BYOL) and supervised pre-training of the backbone.
    finetune: settings A–E on Office.
    controls: k-NN, colour and simple classifiers, which the settings must beat.
    train_segmenter: land-cover segmentation, and its colour control.
    generate_masks: everything mode and superpixels.

The loop:
    loop: train a module, with schedules, optimizers and a guard against divergence.
    checkpoint: save and restore a training.
    batches: shuffled batches of arrays or image files.
    augment, normalisation: views of images.
    losses: losses of segmentation.
    features: frozen backbones, k-NN, colour statistics.
    classification: evaluation and results of fine-tuning and controls.
    device: devices, precision, non-blocking copies.
    distributed: data-parallel training on several processes.
    seeds: seeds of all random generators.
"""
