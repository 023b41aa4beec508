"""A Llama's layers written out for one row, with keys and values kept column by column."""

import torch


def rotated(x, positions, theta):
    """x (Q, H, d) turned by positions (Q,)."""
    half = x.shape[2] // 2
    angle = positions[:, None, None] * theta ** (-torch.arange(half).double() / half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angle.cos() - b * angle.sin(), b * angle.cos() + a * angle.sin()], dim=-1)


class PlainLayers:
    """Full attention over all columns of a row without padding; rotary base `theta`."""

    def __init__(self, model, view, theta=None):
        self.model, self.positions = model, view.position[0]
        self.theta = theta or model.backbone.config.rope_parameters["rope_theta"]
        self.keys = [{} for _ in model.backbone.layers]
        self.values = [{} for _ in model.backbone.layers]

    def values_of(self, number, x):
        """(Q, width) of cells x (Q, D) as they enter a layer."""
        layer = self.model.backbone.layers[number]
        return layer.self_attn.v_proj(layer.input_layernorm(x))

    def layer(self, number, x, columns):
        """(Q, D) from x (Q, D) at these columns, whose keys and values are kept."""
        layer = self.model.backbone.layers[number]
        attention, depth = layer.self_attn, layer.self_attn.head_dim
        h, places = layer.input_layernorm(x), self.positions[columns].double()
        q, k, v = (
            p(h).view(len(x), -1, depth)
            for p in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        q, k = rotated(q, places, self.theta), rotated(k, places, self.theta)
        for i, column in enumerate(columns):
            self.keys[number][column], self.values[number][column] = k[i], v[i]
        order = range(len(self.positions))
        keys = torch.stack([self.keys[number][c] for c in order])
        values = torch.stack([self.values[number][c] for c in order])
        weights = (torch.einsum("qhd,khd->hqk", q, keys) / depth**0.5).softmax(-1)
        seen = torch.einsum("hqk,khd->qhd", weights, values).flatten(1)
        x = x + attention.o_proj(seen)
        return x + layer.mlp(layer.post_attention_layernorm(x))

    def run(self, x, columns):
        """(Q, D) hidden states of x (Q, D) behind all layers."""
        for number in range(len(self.keys)):
            x = self.layer(number, x, columns)
        return self.model.backbone.norm(x)


def said(model, hidden):
    """Best ids and their log-odds-like rank, two lists, of hidden states (Q, D)."""
    logits = model.head(hidden)
    logits[:, model.forbidden()] = float("-inf")
    chance, ids = logits.softmax(-1).max(-1)
    return ids.tolist(), chance.tolist()
