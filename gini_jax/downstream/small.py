"""Small training sets: a learning curve of each objective.

It draws the runs of a sweep that varied `dataset.train_size`, a class-balanced subset:
`--mode=sweep --vary=dataset.train_size=100,500,1000,2500` is 1, 5, 10 and 25 images of each of 100
classes.
"""

SETTING = "dataset.train_size"
X_LABEL = "training images"
