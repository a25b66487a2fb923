// The kernels of one instruction set, LOUISKV_ISA: this file is compiled once for each.
#include "kernels.h"

#include "decode.h"
#include "kmeans.h"
#include "turning.h"

#define LOUISKV_TEXT_OF(name) #name
#define LOUISKV_TEXT(name) LOUISKV_TEXT_OF(name)

namespace louiskv {
namespace LOUISKV_ISA {

extern const Kernels table;
const Kernels table = {
    LOUISKV_TEXT(LOUISKV_ISA),
    decode_attention,
    clustering::kmeans,
    query_cosines,
};

}  // namespace LOUISKV_ISA
}  // namespace louiskv
