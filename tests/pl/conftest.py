import pytest
from matplotlib.text import Text


@pytest.fixture(scope="session")
def assert_not_clipped():
    """Check that all that is written lies inside of the figure."""

    def check(figure, slack=1.0):
        figure.canvas.draw()
        renderer = figure.canvas.get_renderer()
        for text in figure.findobj(Text):
            if not text.get_visible() or not text.get_text().strip():
                continue
            box = text.get_window_extent(renderer)
            inside = (
                box.x0 >= -slack
                and box.y0 >= -slack
                and box.x1 <= figure.bbox.width + slack
                and box.y1 <= figure.bbox.height + slack
            )
            assert inside, (text.get_text(), box, figure.bbox)

    return check
