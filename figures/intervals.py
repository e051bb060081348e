"""Means over seeds: their 95% interval, a test, and Holm's correction. Only for 2 to 10 seeds."""

import math

import numpy as np

from simhuman import mean_and_error


def seeds_interval(differences):
    """(mean, and the ends of its 95% interval) of one paired difference for each of 2..10 seeds.

    Problems are paired within each seed, and the mean of paired differences is the difference of
    means. Each seed has its own model and problems, so the spread of the seeds' differences
    reflects chance in both: Student's interval with one degree of freedom fewer than seeds. (A
    bootstrap, which resamples so few seeds, gives intervals that are too short.)
    Example: 0.1, 0.2, 0.3: the mean 0.2, and 4.303 * 0.1 / sqrt(3) = 0.248 on either side.
    """
    mean, error = mean_and_error(differences)
    return mean, mean - STUDENT[len(differences)] * error, mean + STUDENT[len(differences)] * error


STUDENT = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306,
           10: 2.262}  # the 0.975 quantile of Student's t for this many values


def p_value(differences):
    """Two-sided, of Student's test that the mean of the seeds' differences is zero.

    Example: 0.1, 0.2, 0.3: t = 3.464 with two degrees of freedom, p = 0.074.
    """
    mean, error = mean_and_error(differences)
    if not error:
        return 0.0 if mean else 1.0
    # The t density in terms of the angle a = arctan(t / sqrt(df)) is cos(a) ** (df - 1), scaled.
    df = len(differences) - 1
    angle = np.linspace(0, np.pi / 2, 100_001)
    density = np.cos(angle) ** (df - 1)
    tail = np.arctan(abs(mean) / error / math.sqrt(df)) <= angle
    return float(np.trapezoid(density * tail, angle) / np.trapezoid(density, angle))


def holm(ps):
    """Holm's correction: the p-values of a family, each made as large as all of them require.

    Example: .01, .04, .03: the smallest times 3, the next times 2, the largest times 1, and none
    smaller than one before it: .03, .06, .06.
    """
    found, least = list(ps), 0.0
    for k, i in enumerate(np.argsort(ps, kind="stable")):
        least = found[i] = max(least, min(1.0, (len(ps) - k) * ps[i]))
    return found
