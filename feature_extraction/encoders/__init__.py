"""What makes features of images: one file per kind of encoder (open_clip's towers, timm's trunks, ...)."""
