"""The picture of a digits run: test images with predictions, confusion matrix, accuracy curve."""

from pathlib import Path

from torch import Tensor

from ..files import write_atomically
from .digits import Run

__all__ = ["draw"]


def draw(run: Run, predictions: Tensor, path: str | Path) -> Path:
    """Write the picture of a finished run as PNG; wrong predictions come first, in red."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    labels, images = run.data.test_labels, run.data.test_images
    wrong = predictions != labels
    shown = [*wrong.nonzero().flatten().tolist(), *(~wrong).nonzero().flatten().tolist()][:24]
    figure = plt.figure(figsize=(13, 4.6), layout="constrained")
    left, middle, right = figure.subfigures(1, 3, width_ratios=(1.3, 1.1, 1))

    left.suptitle(f"test images ({int(wrong.sum())} of {len(labels)} wrong)")
    for ax, i in zip(left.subplots(4, 6).flat, shown, strict=True):
        ax.imshow(images[i, 0], cmap="gray_r")
        note = f"{int(predictions[i])}" + (f" (is {int(labels[i])})" if wrong[i] else "")
        ax.set_title(note, fontsize=9, color="tab:red" if wrong[i] else "black")
        ax.axis("off")

    matrix = labels.new_zeros(10, 10)
    for label, prediction in zip(labels.tolist(), predictions.tolist(), strict=True):
        matrix[label, prediction] += 1
    ax = middle.subplots()
    ax.imshow(matrix, cmap="Blues")
    for i in range(10):
        for j in range(10):
            if matrix[i, j]:
                color = "white" if matrix[i, j] > matrix.max() / 2 else "black"
                ax.text(j, i, int(matrix[i, j]), ha="center", va="center", fontsize=8, color=color)
    ax.set(xlabel="predicted", ylabel="true", xticks=range(10), yticks=range(10), title="confusion matrix")

    ax = right.subplots()
    epochs = range(1, run.epoch + 1)
    ax.plot(epochs, [100 * result["accuracy"] for result in run.history])
    ax.axhline(98, color="gray", linewidth=0.8, linestyle=":")
    ax.set(
        xlabel="epoch",
        ylabel="test accuracy (%)",
        ylim=(max(0, 100 * min(r["accuracy"] for r in run.history) - 2), 100.5),
    )
    ax.set_title(f"{run.recipe.model}: {100 * run.history[-1]['accuracy']:.2f} %")
    ax.grid(alpha=0.3)

    write_atomically(path, lambda file: figure.savefig(file, dpi=110))
    plt.close(figure)
    return Path(path)
