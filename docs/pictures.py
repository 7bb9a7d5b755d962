"""The drawings of routing.md: python docs/pictures.py writes docs/routing_*.svg."""

from __future__ import annotations

from html import escape
from pathlib import Path

HERE = Path(__file__).resolve().parent
INK, GREY, FROZEN, TRAINED, ROUTED = "#1f2937", "#6b7280", "#e5e7eb", "#fde68a", "#bfdbfe"


class Drawing:
    """Boxes, arrows and texts on white, so that it reads on a dark page too."""

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
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="{fill}" stroke="{INK}"/>'
        )
        lines = text.split("\n")
        for number, line in enumerate(lines):
            self.text(x + width // 2, y + height // 2 + 5 + 17 * number - 8 * (len(lines) - 1), line)

    def text(self, x: int, y: int, text: str, anchor: str = "middle", colour: str = INK, size: int = 14) -> None:
        self.parts.append(
            f'<text x="{x}" y="{y}" text-anchor="{anchor}" fill="{colour}" font-size="{size}">{escape(text)}</text>'
        )

    def arrow(self, *points: tuple[int, int]) -> None:
        places = " ".join(f"{x},{y}" for x, y in points)
        self.parts.append(
            f'<polyline points="{places}" fill="none" stroke="{INK}" stroke-width="1.5" marker-end="url(#head)"/>'
        )

    def cells(self, x: int, y: int, rows: int, columns: int, fill: str, label: str, size: int = 18) -> None:
        """A matrix, with its name below."""
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
    """Where x_R meets x_H."""
    drawing = Drawing(760, 300, "A bottleneck with routing: hidden states and routing features pass the same W_down")
    drawing.text(20, 30, "one bottleneck of the decoder", "start", GREY)
    drawing.box(20, 60, 130, 44, "x_H [B, T, d]", FROZEN)
    drawing.box(20, 200, 130, 44, "x_R [B, 1, d]", ROUTED)
    drawing.text(85, 265, "mean of the encoder's", "middle", GREY, 12)
    drawing.text(85, 281, "output: text and cells", "middle", GREY, 12)
    drawing.box(200, 60, 90, 44, "W_down", TRAINED)
    drawing.box(200, 200, 90, 44, "W_down", TRAINED)
    drawing.text(245, 150, "the same map,", "middle", GREY, 12)
    drawing.text(245, 166, "trained once", "middle", GREY, 12)
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
    """What each does to one token's r numbers."""
    drawing = Drawing(760, 430, "The routing functions on one token with r = 4")

    def row(y: int, name: str, said: str) -> None:
        drawing.text(20, y + 15, name, "start")
        drawing.text(430, y + 15, said, "start", GREY, 13)

    row(30, "none", "x_t as it is: the plain adapter")
    drawing.cells(110, 30, 1, 4, FROZEN, "x_t")
    row(95, "mul", "each channel scaled by the picture's")
    drawing.cells(110, 95, 1, 4, FROZEN, "x_t")
    drawing.text(197, 109, "o")
    drawing.cells(212, 95, 1, 4, ROUTED, "x_v")
    row(160, "add", "each channel shifted")
    drawing.cells(110, 160, 1, 4, FROZEN, "x_t")
    drawing.text(197, 174, "+")
    drawing.cells(212, 160, 1, 4, ROUTED, "x_v")
    row(225, "mm1", "how alike they are, times x_v: every token")
    drawing.text(430, 257, "ends on the line of x_v", "start", GREY, 13)
    drawing.text(103, 239, "(")
    drawing.cells(110, 225, 1, 4, FROZEN, "x_t")
    drawing.cells(192, 225, 4, 1, ROUTED, "x_v^T")
    drawing.text(218, 239, ")")
    drawing.cells(232, 225, 1, 4, ROUTED, "x_v")
    row(335, "mm2", "the sum of the token's channels times x_v:")
    drawing.text(430, 367, "its direction is gone, its sum stays", "start", GREY, 13)
    drawing.cells(110, 335, 1, 4, FROZEN, "x_t")
    drawing.cells(212, 335, 4, 4, ROUTED, "x_v in every row")
    return drawing


def tasks() -> Drawing:
    """Where functions and weights differ by task."""
    drawing = Drawing(760, 250, "A routing function for each task over a shared frozen backbone")
    names = (("vqa", "mul"), ("gqa", "mul"), ("nlvr2", "mm1"), ("coco_caption", "mm2"))
    drawing.box(20, 150, 720, 50, "frozen CLIP-BART, the same for all tasks", FROZEN)
    for number, (task, function) in enumerate(names):
        x = 20 + 184 * number
        drawing.box(x, 70, 168, 48, f"an adapter of its own\nfunction: {function}", TRAINED)
        drawing.arrow((x + 84, 118), (x + 84, 148))
        drawing.text(x + 84, 55, "batches of " + task, "middle", GREY, 12)
    drawing.text(20, 28, "sharing: per_task, with a function for each task", "start")
    drawing.text(
        20, 230, "sharing: single has one adapter in their place; the function still follows the task", "start", GREY
    )
    return drawing


ALL = {"routing_bottleneck.svg": bottleneck, "routing_functions.svg": functions, "routing_tasks.svg": tasks}

if __name__ == "__main__":
    for name, draw in ALL.items():
        (HERE / name).write_text(str(draw()), encoding="utf-8")
