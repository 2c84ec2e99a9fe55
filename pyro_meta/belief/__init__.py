"""Whether to believe the posterior: what it is compared with, and by how much it misses.

The objective of training is tempered,

    loss = E_q[-log p(y | alpha)] + w KL(q || p),        w = `kl.weight`,

and so what the guide approximates is not the posterior of the model but its tempered one,

    p_w(alpha | x, y)  proportional to  p(alpha) p(y | alpha)^(1/w),

as w times KL(q || p_w) differs from the loss by a constant. Everything here is measured against
p_w, and against the posterior itself (w = 1) where that is said. A route is executed as it is in
training: rounded to one mechanism where the guide is certain enough.

The guide sees x and never y. So even the best guide misses p_w(alpha | x, y) by what y says about
the routes, the conditioning gap (Bayer et al. 2021, arXiv 2101.07046). Where it is told apart, y is
replaced by what the deployed route predicts.
"""
