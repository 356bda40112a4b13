"""BEVFormer's parts."""
