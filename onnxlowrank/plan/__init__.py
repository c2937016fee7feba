"""Statistics and a goal become one setting a layer, and the network of that plan.

The way through: which passes suit (:mod:`.applicability`), the candidates of every layer (:mod:`.candidates`), what
each loses (:mod:`.sensitivity`, in int8 :mod:`.int8_losses`) and costs (:mod:`.latency_model`), which to choose
(:mod:`.energy`, :mod:`.knapsack`), the search for the plan that the stopwatch accepts (:mod:`.search`), and what
reaches a goal (:mod:`.goals`). It may know all rooms that fit, evaluate, calibrate and measure, and what these stand
on.
"""
