// The kernels of one instruction set, LOUISKV_ISA: this file is compiled once for each.
#include "kernels.h"

#include "bisection.h"
#include "candidates.h"
#include "decode.h"
#include "kmeans.h"
#include "moving.h"
#include "recording.h"
#include "scores.h"
#include "selecting.h"
#include "sketches.h"
#include "summing.h"
#include "turning.h"
#include "units.h"
#include "windows.h"

#define LOUISKV_TEXT_OF(name) #name
#define LOUISKV_TEXT(name) LOUISKV_TEXT_OF(name)

namespace louiskv {
namespace LOUISKV_ISA {

extern const Kernels table;
const Kernels table = {
    LOUISKV_TEXT(LOUISKV_ISA),
    decode_attention,
    log_sums,
    dot_logits,
    bound_logits,
    one_bit_logits,
    score_tokens,
    unit_shares,
    agree,
    raise_newest,
    select_units,
    places_of,
    list_candidates,
    best_tokens,
    count_rest,
    assign_slots,
    append_token,
    fetch_rows,
    store_rows,
    clustering::kmeans,
    query_cosines,
    turned,
    record_step,
    cut_runs,
    oldest_runs,
    room_beside,
    take_runs,
    release_runs,
    summarise_units,
    sketch_units,
    bundle_sketches,
    along_widest,
    group_by_label,
    append_units,
    keep_runs,
};

}  // namespace LOUISKV_ISA
}  // namespace louiskv
