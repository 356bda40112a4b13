"""What all monocular data formats share: index, mapper and transforms."""
