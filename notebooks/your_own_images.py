# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own images: from a folder to a served model
#
# You need a folder with a subfolder of pictures for each class. This notebook makes a small one, so that it runs as it is. It takes two
# to four minutes on two CPU cores, without the installation (`pip install . ipykernel`) and the download of the weights (100 MB).

# %%
from pathlib import Path

import matplotlib.pyplot as plt
from PIL import Image
from sklearn.datasets import load_sample_images

import cifar_keras

# %% [markdown]
# ## 1. A folder of pictures
#
# scikit-learn ships two photographs: a temple in China and a flower. We cut each into tiles of 64 x 64 pixels. The question is which
# photograph a tile comes from. To use your own pictures, set `folder` and leave out the rest of this cell.

# %%
folder = Path("pictures")
for name, photograph in zip(("china", "flower"), load_sample_images().images, strict=True):
    (folder / name).mkdir(parents=True, exist_ok=True)
    for top in range(0, 427 - 64, 64):
        for left in range(0, 640, 64):
            tile = Image.fromarray(photograph[top : top + 64, left : left + 64])
            tile.save(folder / name / f"{top:03d}_{left:03d}.png")

# %%
files = sorted(file for file in folder.glob("*/*") if file.suffix.lower() in (".jpg", ".jpeg", ".png"))
figure, axes = plt.subplots(2, 6, figsize=(9, 3.5))
for place, file in zip(axes.ravel(), files[:: max(1, len(files) // 12)], strict=False):
    place.imshow(Image.open(file))
    place.set_title(file.parent.name)
    place.axis("off")

# %% [markdown]
# ## 2. Train
#
# A fifth of the pictures is held out for the test, and a tenth of the rest for validation. Files that are broken or lie in two classes
# are refused here, all at once. First the head learns, then the whole network at a low rate.

# %%
run = cifar_keras.train(
    dataset=f"folder:{folder}",
    backbone="resnet50",
    image_size=64,
    global_batch_size=16,
    head_epochs=20,
    finetune_epochs=2,
)

# %% [markdown]
# ## 3. How good is it?
#
# The metrics belong to the exported model, on pictures that no choice has seen. With few pictures the interval is wide.

# %%
low, high = run.metrics["intervals"]["accuracy"]
print(f"accuracy {run.metrics['accuracy']:.1%} (95 % interval: {low:.1%} to {high:.1%}), {run.metrics['n']} pictures")
print(f"the whole report: {run.report}")
Image.open(run.path / "confusion_matrix.png")

# %% [markdown]
# ## 4. Classify pictures
#
# The model has learned from most of these pictures. Name new ones, as a list of paths.

# %%
for prediction in run.predict(files[::30]):
    print(f"{prediction.name}: {prediction.label}, probability {prediction.probability:.2f}")

# %% [markdown]
# ## 5. Serve
#
# The run has left a SavedModel, which TensorFlow loads without this package. TF Serving takes it as a folder `/models/NAME/1`. It does
# not turn photographs by their EXIF data, which `run.predict` does, and does not read WebP.

# %%
import tensorflow as tf

served = tf.saved_model.load(str(run.path / "saved_model"))
outputs = served.serve_bytes(tf.constant([file.read_bytes() for file in files[::60]]))
print(outputs["class_names"].numpy()[0], outputs["probabilities"].numpy().round(2))

# %% [markdown]
# ## 6. Later
#
# `cifar_keras.load` opens a finished run again. The commands `predict`, `export`, `explain`, `evaluate` and `compare` take its folder.

# %%
again = cifar_keras.load(run.path)
print(again)
