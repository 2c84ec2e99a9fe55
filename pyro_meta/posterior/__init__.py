"""Whether to believe the posterior: what it is compared with, and by how much it misses.

The objective of training is tempered,

    loss = E_q[-log p(y | alpha)] + w KL(q || p),        w = `kl.weight`,

and so what the guide approximates is not the posterior of the model but its tempered one,

    p_w(alpha | x, y)  proportional to  p(alpha) p(y | alpha)^(1/w),

as w times KL(q || p_w) differs from the loss by a constant. Everything here is measured against
p_w, and against the posterior itself (w = 1) where that is said.

Where compute has a price, exp(-lambda c) is part of p(alpha). Once every token is hard a route
alpha runs one mechanism, decide(alpha), so that p(y | alpha) depends on that choice alone. Every
draw decides for itself, as in the model.

Where the model has depth gates, the deployed ones belong to the network: the guide decides each
from the features that it meets, and the routes alone are examined.

The guide sees x and never y. So even the best guide misses p_w(alpha | x, y) by what y says about
the routes, the conditioning gap (Bayer et al. 2021, arXiv 2101.07046). Of single tokens it is told
apart by the best posterior that sees no more than the guide, learned from other texts
(`cross_fitted`); of blocks, y is replaced by what the deployed route predicts.
"""
