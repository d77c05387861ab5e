"""Adversarial fine-tuning: make any CLIP a CLIPAG, on one machine or many."""
