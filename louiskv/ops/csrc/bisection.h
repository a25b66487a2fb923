// Where points lie along the direction in which those of their group spread most.
#pragma once

#include "products.h"

namespace louiskv {
namespace LOUISKV_ISA {

// Points are taken at a time.
constexpr int64_t kPoints = 4;

// Points of a group; zeros fill each up to whole vectors, and are the points that its last ones are filled up with.
struct Spread {
  // [points, dim], [dim], [dim], and [points].
  float *points, *direction, *sums, *along;
  int64_t dim, num_points = 0;

  float* point(int64_t i) const { return points + i * dim; }

  void clear(float* numbers) const {
    for (int64_t i = 0; i < dim; ++i) numbers[i] = 0.0f;
  }

  // From their centre.
  void centre_points() const {
    clear(sums);
    for (int64_t at = 0; at < num_points; ++at)
      for (int64_t i = 0; i < dim; ++i) sums[i] += point(at)[i];
    const float size = static_cast<float>(most(1, num_points));
    for (int64_t i = 0; i < dim; ++i) sums[i] /= size;
    for (int64_t at = 0; at < num_points; ++at)
      for (int64_t i = 0; i < dim; ++i) point(at)[i] -= sums[i];
  }

  float square(int64_t at) const {
    Vec sum{};
    for (int64_t i = 0; i < dim; i += kWidth) sum += load(point(at) + i) * load(point(at) + i);
    return sum_of(sum);
  }

  // Takes the farthest point, the first of equal ones, as direction; none is longer than 1 afterwards.
  void start() const {
    constexpr float kTiny = 1.17549435e-38f;
    int64_t farthest = 0;
    float longest = -1.0f;
    for (int64_t at = 0; at < num_points; ++at) {
      const float distance = square(at);
      if (distance > longest) farthest = at;
      longest = distance > longest ? distance : longest;
    }
    const float scale = 1.0f / std::sqrt(longest > kTiny ? longest : kTiny);
    for (int64_t i = 0; i < num_points * dim; ++i) points[i] *= scale;
    std::memcpy(direction, point(farthest), sizeof(float) * dim);
  }

  // Products of four points with the direction.
  void measure(int64_t at) const {
    const float* four[kPoints] = {point(at), point(at + 1), point(at + 2), point(at + 3)};
    dots<float, 1>(four, direction, dim, dim, along + at, kPoints);
  }

  void step() const {
    clear(sums);
    for (int64_t at = 0; at < num_points; at += kPoints) {
      measure(at);
      const float *a = point(at), *b = a + dim, *c = b + dim, *d = c + dim, *by = along + at;
      for (int64_t i = 0; i < dim; i += kWidth)
        put(load(sums + i) + ((load(a + i) * by[0] + load(b + i) * by[1]) +
                              (load(c + i) * by[2] + load(d + i) * by[3])), sums + i);
    }
    std::memcpy(direction, sums, sizeof(float) * dim);
  }
};

template <typename T>
void pick_points(const AlongWidest& p, int64_t row, int64_t first, int64_t width, Spread& to) {
  const T* points = static_cast<const T*>(p.points.data) + row * p.points.stride[0];
  const int64_t count = index_at(p.counts, row * p.counts.stride[0]), dim = p.points.size[2];
  to.num_points = 0;
  for (int64_t place = first; place < first + width; ++place) {
    const int64_t index = entry_at(p.order, row, place);
    if (index >= count) continue;
    const T* from = points + index * p.points.stride[1];
    float* point = to.point(to.num_points++);
    for (int64_t i = 0; i < dim; ++i) point[i] = to_float(from[i]);
    for (int64_t i = dim; i < to.dim; ++i) point[i] = 0.0f;
  }
  for (int64_t at = to.num_points; at % kPoints; ++at) to.clear(to.point(at));
}

inline void place_group(const AlongWidest& p, int64_t row, int64_t group, Spread& of) {
  const int64_t width = p.out.size[2], first = group * width;
  p.points.type == Type::f32 ? pick_points<float>(p, row, first, width, of)
                             : pick_points<bf16>(p, row, first, width, of);
  of.centre_points();
  of.start();
  for (int64_t step = 0; step < p.steps; ++step) of.step();
  for (int64_t at = 0; at < of.num_points; at += kPoints) of.measure(at);
  const int64_t count = index_at(p.counts, row * p.counts.stride[0]);
  float* out = static_cast<float*>(p.out.data) + row * p.out.stride[0] + group * p.out.stride[1];
  const float* along = of.along;
  for (int64_t place = 0; place < width; ++place) {
    out[place] = kInfinity;
    if (entry_at(p.order, row, first + place) >= count) continue;
    // What is no number is at 0.
    out[place] = *along == *along ? *along : 0.0f;
    ++along;
  }
}

inline void along_widest(const AlongWidest& p, int num_threads) {
  const int64_t num_groups = p.out.size[1], num_tasks = p.out.size[0] * num_groups;
  const int64_t dim = whole(p.points.size[2]), num_points = (p.out.size[2] + kPoints - 1) / kPoints * kPoints;
  // Each pass reads them.
  const int64_t num_bytes = num_tasks * num_points * dim * int64_t(sizeof(float)) * (p.steps + 1);
  const int num_parts = static_cast<int>(least(parts_for(num_bytes, num_threads), num_tasks));
  in_parts(num_parts, [&](int part) {
    Scratch<float> numbers((num_points + 2) * dim + num_points);
    float *direction = numbers + num_points * dim, *sums = direction + dim;
    Spread of{numbers, direction, sums, sums + dim, dim};
    for (int64_t task = part; task < num_tasks; task += num_parts)
      place_group(p, task / num_groups, task % num_groups, of);
  });
}

}  // namespace LOUISKV_ISA
}  // namespace louiskv
