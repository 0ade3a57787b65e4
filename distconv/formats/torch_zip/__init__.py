"""The zip archives of `torch.save`: read as data, created with holes for tensor data. No format of its own."""
