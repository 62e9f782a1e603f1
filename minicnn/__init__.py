"""A small autograd engine, and the methods of a paper on softmax temperature. Begin with networks.paper_cnn."""

__version__ = "0.2.0"
