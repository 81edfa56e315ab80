"""Label maps of images: reading mask folders, ADE20K and Cityscapes layouts, and making batches of them."""
