"""What pretraining and fine-tuning share: volumes, cuboids, cells, networks, classifiers."""
