"""Looking into prototype nets, and plain classifiers beside them."""
