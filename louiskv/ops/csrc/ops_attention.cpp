// Shims of attention, and of how much there is of it.
#include "shim.h"

namespace louiskv {
namespace {

using Optional = std::optional<Tensor>;

void check(const DecodeAttention& p) {
  const int64_t num_rows = p.query.size[0], num_heads = p.query.size[1], dim = p.query.size[2];
  const int64_t num_slots = p.keys.size[1], value_dim = p.values.size[2];
  STD_TORCH_CHECK(is_real(p.query) && p.query.type == p.keys.type && p.query.type == p.values.type,
                  "louiskv: query, keys and values of one dtype");
  STD_TORCH_CHECK(p.keys.size[0] == num_rows && p.values.size[0] == num_rows && p.keys.size[2] == dim &&
                      p.values.size[1] == num_slots,
                  "louiskv: keys and values do not fit the query");
  check_dense(p.keys, 2, "keys");
  check_dense(p.values, 2, "values");
  if (p.bias) STD_TORCH_CHECK(p.bias.size[2] == num_slots, "louiskv: a bias for each slot");
  if (p.attention_sinks)
    STD_TORCH_CHECK(p.attention_sinks.size[0] == num_rows && p.attention_sinks.size[1] == num_heads,
                    "louiskv: attention sinks [N, G]");
  if (p.rows) {
    check_dense(p.rows, 2, "chosen rows");
    STD_TORCH_CHECK(p.rows.type == p.query.type && p.rows.size[2] == dim + value_dim && p.place.size[0] == num_rows,
                    "louiskv: chosen rows do not fit the query");
    check_index(p.place, "place");
  }
  if (p.logits) {
    check_dense(p.rest_values, 2, "values of the rest");
    STD_TORCH_CHECK(p.logits.type == Type::f32, "louiskv: logits of the rest in float32");
    STD_TORCH_CHECK(is_real(p.rest_values) || p.rest_values.type == Type::i8, "louiskv: values of the rest in a dtype "
                    "that there is no kernel for");
    check_number(p.num_left, "number of tokens");
    const int64_t num_entries = p.logits.size[2];
    STD_TORCH_CHECK(p.logits.size[0] == num_rows && p.logits.size[1] == num_heads &&
                        p.rest_values.size[0] == num_rows && p.rest_values.size[1] == num_entries &&
                        p.rest_values.size[2] == value_dim && p.num_left.size[1] == num_entries &&
                        p.steps.size[1] == num_entries,
                    "louiskv: the rest does not fit the query");
  }
}

Tensor decode_attention(const Tensor& query, const Tensor& keys, const Tensor& values, const Optional& bias,
                        double scaling, std::optional<double> softcap, const Optional& attention_sinks,
                        const Optional& rows, const Optional& place, const Optional& logits, const Optional& num_left,
                        const Optional& rest_values, const Optional& steps) {
  DecodeAttention p;
  p.query = array_of(query);
  p.keys = array_of(keys);
  p.values = array_of(values);
  p.bias = spread(array_of(bias));
  p.attention_sinks = array_of(attention_sinks);
  p.rows = array_of(rows);
  p.place = array_of(place);
  p.logits = array_of(logits);
  p.num_left = spread(array_of(num_left));
  p.rest_values = array_of(rest_values);
  p.steps = spread(array_of(steps));
  p.scaling = static_cast<float>(scaling);
  p.softcap = static_cast<float>(softcap.value_or(0.0));
  check(p);
  const bool is_f32 = p.query.type == Type::f32;
  const Tensor out = empty({p.query.size[0], p.query.size[1], p.values.size[2]},
                           is_f32 ? aoti_torch_dtype_float32() : aoti_torch_dtype_bfloat16());
  p.out = array_of(out);
  kernels().decode_attention(p, num_threads());
  return out;
}

Tensor log_sums(const Tensor& query, const Tensor& keys, const Tensor& bias, double scaling,
                const Optional& attention_sinks) {
  LogSums p;
  p.query = array_of(query);
  p.keys = array_of(keys);
  p.bias = spread(array_of(bias));
  p.attention_sinks = array_of(attention_sinks);
  p.scaling = static_cast<float>(scaling);
  const int64_t num_rows = p.query.size[0], num_heads = p.query.size[1];
  STD_TORCH_CHECK(is_real(p.query) && p.query.type == p.keys.type && p.keys.size[0] == num_rows &&
                      p.keys.size[2] == p.query.size[2],
                  "louiskv: keys do not fit the query");
  check_dense(p.keys, 2, "keys");
  check_number(p.bias, "bias");
  STD_TORCH_CHECK(p.bias.size[2] == p.keys.size[1] && (p.bias.stride[0] == 0 || p.bias.size[0] == num_rows),
                  "louiskv: a bias for each key");
  if (p.attention_sinks)
    STD_TORCH_CHECK(p.attention_sinks.size[0] == num_rows && p.attention_sinks.size[1] == num_heads,
                    "louiskv: attention sinks [N, G]");
  const Tensor out = empty({num_rows, num_heads}, aoti_torch_dtype_float32());
  p.out = array_of(out);
  kernels().log_sums(p, num_threads());
  return out;
}

}  // namespace

STABLE_TORCH_LIBRARY_FRAGMENT(louiskv, library) {
  library.def(
      "decode_attention(Tensor query, Tensor keys, Tensor values, Tensor? bias, float scaling, float? softcap, "
      "Tensor? attention_sinks, Tensor? rows, Tensor? place, Tensor? logits, Tensor? num_left, Tensor? rest_values, "
      "Tensor? steps) -> Tensor");
  library.def(
      "log_sums(Tensor query, Tensor keys, Tensor bias, float scaling, Tensor? attention_sinks) -> Tensor");
}

STABLE_TORCH_LIBRARY_IMPL(louiskv, CPU, library) {
  library.impl("decode_attention", TORCH_BOX(&decode_attention));
  library.impl("log_sums", TORCH_BOX(&log_sums));
}

}  // namespace louiskv
