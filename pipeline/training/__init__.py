"""Training: image store, P x K batches, augmentation on the device, the loop, checkpoints, several processes."""
