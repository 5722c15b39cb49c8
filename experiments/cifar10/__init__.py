"""DiffEM on the images of CIFAR-10."""
