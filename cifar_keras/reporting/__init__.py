"""What a run says about itself: metrics, pictures and tables."""
