"""Figures of the README and of routing.md; `python docs/figures.py` writes docs/overview.svg and docs/routing_*.svg."""

from __future__ import annotations

from html import escape
from pathlib import Path

HERE = Path(__file__).resolve().parent
INK, GRAY, FROZEN, TRAINED, ROUTED = "#1f2937", "#6b7280", "#e5e7eb", "#fde68a", "#bfdbfe"


class Drawing:
    """An SVG of boxes, arrows and labels on a white background, readable on a dark page as well."""

    def __init__(self, width: int, height: int, title: str):
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'role="img" font-family="system-ui, sans-serif" font-size="14" fill="{INK}">',
            f"<title>{escape(title)}</title>",
            '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
            f'orient="auto-start-reverse"><path d="M0 0 8 4 0 8z" fill="{INK}"/></marker></defs>',
            f'<rect width="{width}" height="{height}" rx="8" fill="#fff"/>',
        ]

    def box(self, x: int, y: int, width: int, height: int, text: str, fill: str) -> None:
        """Add a box with centered lines of text."""
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="{fill}" stroke="{INK}"/>'
        )
        lines = text.split("\n")
        for number, line in enumerate(lines):
            self.text(x + width // 2, y + height // 2 + 5 + 17 * number - 8 * (len(lines) - 1), line)

    def text(self, x: int, y: int, text: str, anchor: str = "middle", color: str = INK, size: int = 14) -> None:
        """Add one line of text."""
        self.parts.append(
            f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{color}" font-size="{size}">{escape(text)}</text>'
        )

    def arrow(self, *points: tuple[int, int]) -> None:
        """Add a polyline that ends in an arrowhead."""
        places = " ".join(f"{x},{y}" for x, y in points)
        self.parts.append(
            f'<polyline points="{places}" fill="none" stroke="{INK}" stroke-width="1.5" marker-end="url(#head)"/>'
        )

    def matrix(self, x: int, y: int, rows: int, columns: int, fill: str, label: str, size: int = 18) -> None:
        """Add a matrix with its name below."""
        for row in range(rows):
            for column in range(columns):
                self.parts.append(
                    f'<rect x="{x + column * size}" y="{y + row * size}" width="{size}" height="{size}" '
                    f'fill="{fill}" stroke="{INK}" stroke-width="0.8"/>'
                )
        self.text(x + columns * size // 2, y + rows * size + 18, label)

    def __str__(self) -> str:
        return "\n".join([*self.parts, "</svg>", ""])


def bottleneck() -> Drawing:
    """One bottleneck with routing."""
    drawing = Drawing(760, 300, "A bottleneck with routing: hidden states and routing features pass the same W_down")
    drawing.text(20, 30, "one bottleneck of the decoder", "start", GRAY)
    drawing.box(20, 60, 130, 44, "x_H [B, T, d]", FROZEN)
    drawing.box(20, 200, 130, 44, "x_R [B, 1, d]", ROUTED)
    drawing.text(85, 265, "mean of the encoder's", "middle", GRAY, 12)
    drawing.text(85, 281, "output: text and image", "middle", GRAY, 12)
    drawing.box(200, 60, 90, 44, "W_down", TRAINED)
    drawing.box(200, 200, 90, 44, "W_down", TRAINED)
    drawing.text(245, 150, "the same layer,", "middle", GRAY, 12)
    drawing.text(245, 166, "trained", "middle", GRAY, 12)
    drawing.box(360, 110, 130, 84, "routing function\nmul, mm1, ...\nno parameters", ROUTED)
    drawing.box(530, 130, 70, 44, "GELU", FROZEN)
    drawing.box(640, 130, 90, 44, "W_up", TRAINED)
    drawing.arrow((150, 82), (198, 82))
    drawing.arrow((150, 222), (198, 222))
    drawing.arrow((290, 82), (330, 82), (330, 135), (358, 135))
    drawing.arrow((290, 222), (330, 222), (330, 170), (358, 170))
    drawing.text(334, 76, "x_t [B, T, r]", "start", INK, 12)
    drawing.text(334, 240, "x_v [B, 1, r]", "start", INK, 12)
    drawing.arrow((490, 152), (528, 152))
    drawing.arrow((600, 152), (638, 152))
    drawing.arrow((685, 130), (685, 60))
    drawing.text(685, 50, "added to x_H", "middle", INK, 12)
    return drawing


def functions() -> Drawing:
    """Each routing function on one token."""
    drawing = Drawing(760, 430, "The routing functions on one token with r = 4")

    def row(y: int, name: str, meaning: str) -> None:
        drawing.text(20, y + 15, name, "start")
        drawing.text(430, y + 15, meaning, "start", GRAY, 13)

    row(30, "none", "x_t unchanged: the plain adapter")
    drawing.matrix(110, 30, 1, 4, FROZEN, "x_t")
    row(95, "mul", "each channel scaled by the image's")
    drawing.matrix(110, 95, 1, 4, FROZEN, "x_t")
    drawing.text(197, 109, "o")
    drawing.matrix(212, 95, 1, 4, ROUTED, "x_v")
    row(160, "add", "each channel shifted")
    drawing.matrix(110, 160, 1, 4, FROZEN, "x_t")
    drawing.text(197, 174, "+")
    drawing.matrix(212, 160, 1, 4, ROUTED, "x_v")
    row(225, "mm1", "their dot product times x_v: every token")
    drawing.text(430, 257, "becomes a multiple of x_v", "start", GRAY, 13)
    drawing.text(103, 239, "(")
    drawing.matrix(110, 225, 1, 4, FROZEN, "x_t")
    drawing.matrix(192, 225, 4, 1, ROUTED, "x_v^T")
    drawing.text(218, 239, ")")
    drawing.matrix(232, 225, 1, 4, ROUTED, "x_v")
    row(335, "mm2", "the sum of the token's channels times x_v:")
    drawing.text(430, 367, "its direction is lost, its sum is kept", "start", GRAY, 13)
    drawing.matrix(110, 335, 1, 4, FROZEN, "x_t")
    drawing.matrix(212, 335, 4, 4, ROUTED, "x_v in every row")
    return drawing


def tasks() -> Drawing:
    """A routing function and an adapter for each task."""
    drawing = Drawing(760, 250, "A routing function for each task over a shared frozen backbone")
    names = (("vqa", "mul"), ("gqa", "mul"), ("nlvr2", "mm1"), ("coco_caption", "mm2"))
    drawing.box(20, 150, 720, 50, "frozen CLIP-BART, the same for all tasks", FROZEN)
    for number, (task, function) in enumerate(names):
        x = 20 + 184 * number
        drawing.box(x, 70, 168, 48, f"adapter of this task\nfunction: {function}", TRAINED)
        drawing.arrow((x + 84, 118), (x + 84, 148))
        drawing.text(x + 84, 55, "batches of " + task, "middle", GRAY, 12)
    drawing.text(20, 28, "sharing: per_task, with a function for each task", "start")
    drawing.text(
        20, 230, "sharing: single has one adapter for all tasks; the function still depends on the task", "start", GRAY
    )
    return drawing


def overview() -> Drawing:
    """From image to answer: what is frozen, what is trained, and where routing happens."""
    drawing = Drawing(960, 400, "Image features and text enter a frozen BART; adapters route its pooled output")
    drawing.box(20, 36, 120, 48, "image", "#fff")
    drawing.box(170, 36, 150, 48, "vision encoder\n(open_clip, timm)", FROZEN)
    drawing.box(350, 36, 150, 48, "feature store\n(HDF5)", "#fff")
    drawing.box(350, 130, 150, 48, "visual embedding", TRAINED)
    drawing.box(20, 230, 120, 62, '"vqa: what color\nis the star?"', "#fff")
    drawing.box(170, 222, 330, 78, "BART encoder: text and visual tokens", FROZEN)
    drawing.box(470, 240, 22, 42, "", TRAINED)
    drawing.box(560, 222, 270, 78, "BART decoder", FROZEN)
    drawing.box(800, 240, 22, 42, "", ROUTED)
    drawing.box(860, 236, 80, 50, '"red"', "#fff")
    drawing.arrow((140, 60), (168, 60))
    drawing.arrow((320, 60), (348, 60))
    drawing.arrow((425, 84), (425, 128))
    drawing.arrow((425, 178), (425, 220))
    drawing.arrow((140, 261), (168, 261))
    drawing.arrow((500, 261), (558, 261))
    drawing.arrow((830, 261), (858, 261))
    drawing.box(560, 36, 380, 142, "", "#fff")
    drawing.text(572, 56, "adapter of a task in the decoder", "start", GRAY, 12)
    drawing.box(574, 68, 70, 34, "W_down", TRAINED)
    drawing.box(574, 126, 70, 34, "W_down", TRAINED)
    drawing.box(690, 84, 130, 60, "routing function\nmul, add,\nmm1, mm2", ROUTED)
    drawing.box(856, 97, 64, 34, "W_up", TRAINED)
    drawing.text(609, 118, "same weights", "middle", GRAY, 11)
    drawing.arrow((644, 85), (668, 85), (668, 104), (688, 104))
    drawing.arrow((644, 143), (668, 143), (668, 124), (688, 124))
    drawing.arrow((820, 114), (854, 114))
    drawing.arrow((811, 240), (811, 180))
    drawing.arrow((530, 261), (530, 143), (572, 143))
    drawing.text(524, 206, "x_R", "end", INK, 13)
    drawing.text(536, 320, "x_R: mean of the encoder output", "middle", GRAY, 12)
    for x, fill, label in ((20, FROZEN, "frozen"), (130, TRAINED, "trained"), (240, ROUTED, "routed by x_R")):
        drawing.box(x, 352, 22, 22, "", fill)
        drawing.text(x + 30, 368, label, "start", INK, 13)
    drawing.text(940, 368, "a few percent of the parameters are trained, per task or shared", "end", GRAY, 13)
    return drawing


ALL = {
    "overview.svg": overview,
    "routing_bottleneck.svg": bottleneck,
    "routing_functions.svg": functions,
    "routing_tasks.svg": tasks,
}

if __name__ == "__main__":
    for name, draw in ALL.items():
        (HERE / name).write_text(str(draw()), encoding="utf-8")
