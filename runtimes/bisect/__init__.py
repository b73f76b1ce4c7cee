"""Find the first operation of a program whose result departs from PyTorch's matching activation."""
