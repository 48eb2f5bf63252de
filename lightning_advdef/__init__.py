"""Train, defend and honestly evaluate image classifiers against adversarial perturbations."""
