"""Objects in images: reading COCO, Pascal VOC and YOLO annotations, and making batches of them."""
