"""Our attacks beside those of other libraries: same network, images, settings, process and judge."""
