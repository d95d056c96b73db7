"""Files: on disk and from the network. Importing these modules does not import TensorFlow, except for `tarballs`."""
