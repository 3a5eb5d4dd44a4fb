"""From a slider's move to the redrawn picture: python benchmarks/explorer.py [moves]

Opens each committed sweep, moves every slider over it and says how long the kernel was at it, and how long at opening it again.
Beside it, the same picture drawn anew by matplotlib, as a ratio: kept artists are what makes the difference.
"""

import statistics
import sys
import time

from matplotlib.backends.backend_agg import FigureCanvasAgg

from tying_utils.explorer import explore
from tying_utils.study import sweep


def main(moves: int) -> None:
    shown = explore()
    assert shown.widget
    first, *others = sweep.corpora("quick")
    for corpus in (*others, first, *others):
        began = time.perf_counter()
        shown.corpus.value = corpus
        print(f"{corpus}: opened in {1e3 * (time.perf_counter() - began):.0f} ms")
    for corpus in (first, *others):
        shown.corpus.value = corpus
        view = shown.view(corpus)
        for slider in (shown.input_scale, shown.output_scale, shown.step):
            values = [value for _, value in slider.options]
            times = []
            for i in range(moves):
                target = values[i % len(values)]
                if target == slider.value:
                    continue
                began = time.perf_counter()
                slider.value = target
                times.append(time.perf_counter() - began)
            words = f"median {1e3 * statistics.median(times):.0f} ms, worst {1e3 * max(times):.0f} ms of {len(times)}"
            print(f"{corpus}, {slider.description}: {words}")
        began = time.perf_counter()
        FigureCanvasAgg(view.figure).draw()
        whole = time.perf_counter() - began
        print(
            f"{corpus}: the whole figure drawn anew {1e3 * whole:.0f} ms, {whole / statistics.median(times):.1f} times a move"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 60)
