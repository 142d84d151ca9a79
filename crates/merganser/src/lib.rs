//! Merges fine-tuned neural networks without retraining: mergekit recipes, many times faster, in bounded memory
