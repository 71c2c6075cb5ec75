// A layout in other trainers' words. What they have no word for is said in a comment: silence would be a promise.
#include "study/study.h"

const char *const gang_trainer_names[] = {"megatron", "torchtitan", "deepspeed", NULL};

static bool uneven(const struct gang_layout *l) {
    for (int i = 1; i < l->layer_count; i++)
        if (l->layers[i] != l->layers[0]) return true;
    return false;
}

// The most that is made again on any stage: what fits everywhere where a trainer has one word for all.
static enum gang_recompute most_again(const struct gang_layout *l) {
    int most = l->recompute.at[0];
    for (int s = 1; s < l->recompute.count; s++)
        if (l->recompute.at[s] > most) most = l->recompute.at[s];
    return (enum gang_recompute)most;
}

// Whether this lies in the nodes' memory; on any stage: what fits everywhere.
static bool offloads(const struct gang_layout *l, enum gang_offload what) {
    for (int s = 0; s < l->pp; s++)
        if (gang_of_stage(&l->offload, s) & (int)what) return true;
    return false;
}

// What no trainer here expresses.
static void common_limits(const struct gang_answer *a, struct gang_buffer *out) {
    const struct gang_layout *l = &a->layout;
    const struct gang_by_stage *again = &l->recompute;
    if (again->count) gang_buffer_printf(out, "# not expressed: recompute of each stage ");
    for (int s = 0; s < again->count; s++) gang_buffer_printf(out, "%s%s", s ? "/" : "", gang_recompute_names[again->at[s]]);
    if (again->count) gang_buffer_printf(out, "; on all of them %s fits, and is slower\n", gang_recompute_names[most_again(l)]);
    if (l->offload.count) gang_buffer_printf(out, "# not expressed: offload of single stages ");
    for (int s = 0; s < l->offload.count; s++) gang_buffer_printf(out, "%s%s", s ? "/" : "", gang_offload_names[l->offload.at[s]]);
    if (l->offload.count) gang_buffer_printf(out, "; on all of them what any stage offloads fits, and is slower\n");
    for (int k = 0; k < l->size_count; k++)
        gang_buffer_printf(out, "%s%d%s", k ? ", " : "# not expressed: replicas whose micro-batches are of ", l->sizes[k],
                           k == l->size_count - 1 ? " sequences\n" : "");
    for (int c = 1; c < a->placement.class_count; c++)
        if (a->placement.classes[c].micro_batches != a->placement.classes[0].micro_batches) {
            gang_buffer_printf(out, "# not expressed: replicas of %lld and %lld micro-batches in one step\n",
                               (long long)a->placement.classes[0].micro_batches, (long long)a->placement.classes[c].micro_batches);
            break;
        }
    if (a->schedule == GANG_SCHEDULE_LIST)
        gang_buffer_printf(out, "# not expressed: the order of work found by the list scheduler; the trainer's own will be somewhat slower\n");
}

// Fine-grained offloading names modules whose inputs leave; what is made again whole has none.
static void emit_megatron_offload(const struct gang_shape *shape, const struct gang_layout *l, struct gang_buffer *out) {
    if (offloads(l, GANG_OFFLOAD_OPTIMIZER))
        gang_buffer_printf(out, "--optimizer-cpu-offload --optimizer-offload-fraction 1.0 --use-precision-aware-optimizer\n");
    if (!offloads(l, GANG_OFFLOAD_ACTIVATIONS)) return;
    if (most_again(l) == GANG_RECOMPUTE_FULL) {
        gang_buffer_printf(out, "# not expressed: offload of activations together with recompute=full\n");
        return;
    }
    gang_buffer_printf(out, "--fine-grained-activation-offloading --offload-modules attn_norm qkv_linear core_attn attn_proj mlp_norm%s\n",
                       shape->experts ? " expert_fc1 moe_act" : "");
    if (!shape->experts || shape->dense_layers) gang_buffer_printf(out, "# not expressed: offload of what a dense feed-forward keeps\n");
}

static void emit_megatron(const struct gang_task *task, const struct gang_answer *a, struct gang_buffer *out) {
    const struct gang_layout *l = &a->layout;
    gang_buffer_printf(out, "# Megatron-LM: torchrun over %lld devices\n", (long long)a->summary.devices);
    gang_buffer_printf(out, "--tensor-model-parallel-size %d --pipeline-model-parallel-size %d --context-parallel-size %d\n", l->tp, l->pp, l->cp);
    gang_buffer_printf(out, "--micro-batch-size %d --global-batch-size %lld --seq-length %lld\n", l->micro_batch, (long long)task->global_batch,
                       (long long)task->sequence_length);
    if (l->ep > 1) gang_buffer_printf(out, "--expert-model-parallel-size %d\n", l->ep);
    if (l->vpp > 1 && !uneven(l)) gang_buffer_printf(out, "--num-layers-per-virtual-pipeline-stage %d\n", l->layers[0]);
    if (uneven(l)) {
        if (l->vpp == 1 && l->pp > 2 && l->layers[0] != l->layers[1])
            gang_buffer_printf(out, "--decoder-first-pipeline-num-layers %d --decoder-last-pipeline-num-layers %d\n", l->layers[0],
                               l->layers[l->pp - 1]);
        gang_buffer_printf(out, "# not expressed: layers of each chunk");
        for (int i = 0; i < l->layer_count; i++) gang_buffer_printf(out, "%s%d", i ? "/" : " ", l->layers[i]);
        gang_buffer_printf(out, " where they go beyond the first and the last stage\n");
    }
    if (l->sequence_parallel && l->tp > 1) gang_buffer_printf(out, "--sequence-parallel\n");
    if (l->zero == 1)
        gang_buffer_printf(out, "--use-distributed-optimizer%s\n", l->dp_overlap ? " --overlap-grad-reduce --overlap-param-gather" : "");
    if (l->zero > 1) gang_buffer_printf(out, "--use-torch-fsdp2 # zero=%d; takes pp=1 only\n", l->zero);
    if (l->tp_overlap && l->tp > 1) gang_buffer_printf(out, "--tp-comm-overlap\n");
    emit_megatron_offload(&task->shape, l, out);
    enum gang_recompute again = most_again(l);
    if (again == GANG_RECOMPUTE_FULL) gang_buffer_printf(out, "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1\n");
    if (again == GANG_RECOMPUTE_SELECTIVE)
        gang_buffer_printf(out, "--recompute-granularity selective --recompute-modules layernorm%s\n",
                           task->shape.experts ? " moe_act" : " # not expressed: the activation made again");
    if (again == GANG_RECOMPUTE_ALTERNATE) gang_buffer_printf(out, "# not expressed: recompute=alternate\n");
    if (a->schedule == GANG_SCHEDULE_ZERO_BUBBLE) gang_buffer_printf(out, "# not expressed: zero-bubble schedule\n");
    gang_buffer_printf(out, task->math == GANG_MATH_F8    ? "--bf16 --fp8-format hybrid\n"
                            : task->math == GANG_MATH_F16 ? "--bf16\n"
                                                          : "# f32: no flag\n");
}

static void emit_torchtitan(const struct gang_task *task, const struct gang_answer *a, struct gang_buffer *out) {
    static const char *const schedules[] = {"1F1B", "1F1B", "Interleaved1F1B", "ZBVZeroBubble", "1F1B"};
    const struct gang_layout *l = &a->layout;
    gang_buffer_printf(
        out, "# torchtitan: job.toml for %lld devices\n[training]\nlocal_batch_size = %lld\nglobal_batch_size = %lld\nseq_len = %lld\n",
        (long long)a->summary.devices, (long long)(l->pp > 1 ? a->placement.classes[0].micro_batches * l->micro_batch : l->micro_batch),
        (long long)task->global_batch, (long long)task->sequence_length);
    gang_buffer_printf(out, "[parallelism]\ndata_parallel_shard_degree = %d\ndata_parallel_replicate_degree = %d\ntensor_parallel_degree = %d\n",
                       l->zero >= 2 ? l->dp : 1, l->zero >= 2 ? 1 : l->dp, l->tp);
    gang_buffer_printf(out, "pipeline_parallel_degree = %d\ncontext_parallel_degree = %d\nexpert_parallel_degree = %d\n", l->pp, l->cp, l->ep);
    if (l->pp > 1)
        gang_buffer_printf(out, "pipeline_parallel_schedule = \"%s\"\npipeline_parallel_microbatch_size = %d\n",
                           l->vpp > 1 && a->schedule == GANG_SCHEDULE_LIST ? "Interleaved1F1B" : schedules[a->schedule], l->micro_batch);
    if (l->tp_overlap && l->tp > 1) gang_buffer_printf(out, "enable_async_tensor_parallel = true\n");
    enum gang_recompute again = most_again(l);
    gang_buffer_printf(out, "[activation_checkpoint]\nmode = \"%s\"\n", again == GANG_RECOMPUTE_FULL ? "full" : again ? "selective" : "none");
    if (again == GANG_RECOMPUTE_ALTERNATE) gang_buffer_printf(out, "selective_ac_option = \"op\"\n");
    if (again == GANG_RECOMPUTE_SELECTIVE)
        gang_buffer_printf(out, "# not expressed: norms and activations only; selective here makes every second product again too\n");
    if (l->zero == 1 && l->dp > 1) gang_buffer_printf(out, "# not expressed: zero=1, optimizer sharded but weights and gradients whole\n");
    if (offloads(l, GANG_OFFLOAD_OPTIMIZER))
        gang_buffer_printf(out, "# not expressed: the optimizer's offload alone; enable_cpu_offload moves weights and gradients too\n");
    if (offloads(l, GANG_OFFLOAD_ACTIVATIONS)) gang_buffer_printf(out, "# not expressed: offload of activations\n");
    if (uneven(l)) gang_buffer_printf(out, "# uneven layers: give the module names of every stage in module_fqns_per_model_part\n");
    if (task->math == GANG_MATH_F8) gang_buffer_printf(out, "[model]\nconverters = [\"float8\"]\n");
}

static void emit_deepspeed(const struct gang_task *task, const struct gang_answer *a, struct gang_buffer *out) {
    const struct gang_layout *l = &a->layout;
    bool full = !l->recompute.count && l->recompute.at[0] == GANG_RECOMPUTE_FULL, away = full && offloads(l, GANG_OFFLOAD_ACTIVATIONS);
    gang_buffer_printf(out,
                       "# DeepSpeed: ds_config.json\n{\n  \"train_batch_size\": %lld,\n  \"train_micro_batch_size_per_gpu\": %d,\n  "
                       "\"gradient_accumulation_steps\": %lld,\n",
                       (long long)task->global_batch, l->micro_batch, (long long)a->placement.classes[0].micro_batches);
    gang_buffer_printf(out, "  \"zero_optimization\": {\"stage\": %d, \"overlap_comm\": %s%s},\n%s  \"bf16\": {\"enabled\": %s}\n}\n", l->zero,
                       l->dp_overlap ? "true" : "false", offloads(l, GANG_OFFLOAD_OPTIMIZER) ? ", \"offload_optimizer\": {\"device\": \"cpu\"}" : "",
                       away ? "  \"activation_checkpointing\": {\"partition_activations\": true, \"cpu_checkpointing\": true},\n" : "",
                       task->math == GANG_MATH_F32 ? "false" : "true");
    if (l->tp > 1 || l->pp > 1)
        gang_buffer_printf(out, "# in the model's code (Megatron-DeepSpeed): --tensor-model-parallel-size %d --pipeline-model-parallel-size %d\n",
                           l->tp, l->pp);
    if (l->pp > 1 && l->zero > 1) gang_buffer_printf(out, "# not expressed: zero=%d together with a pipeline\n", l->zero);
    if (l->vpp > 1) gang_buffer_printf(out, "# not expressed: vpp=%d\n", l->vpp);
    if (l->cp > 1) gang_buffer_printf(out, "# not expressed: cp=%d; Ulysses (sequence_parallel_size) is the nearest\n", l->cp);
    if (a->schedule == GANG_SCHEDULE_ZERO_BUBBLE) gang_buffer_printf(out, "# not expressed: zero-bubble schedule\n");
    if (most_again(l))
        gang_buffer_printf(out, "# recompute=%s: activation checkpointing is switched on in the model's code\n", gang_recompute_names[most_again(l)]);
    if (!full && offloads(l, GANG_OFFLOAD_ACTIVATIONS))
        gang_buffer_printf(out, "# not expressed: offload of activations; cpu_checkpointing moves those that recompute=full keeps\n");
    if (uneven(l)) gang_buffer_printf(out, "# uneven layers: PipelineModule(partition_method=[...]) in the model's code\n");
    if (task->math == GANG_MATH_F8) gang_buffer_printf(out, "# not expressed: products in f8\n");
}

void gang_emit(enum gang_trainer trainer, const struct gang_task *task, const struct gang_answer *answer, struct gang_buffer *out) {
    static void (*const emitters[])(const struct gang_task *, const struct gang_answer *, struct gang_buffer *) = {emit_megatron, emit_torchtitan,
                                                                                                                   emit_deepspeed};
    emitters[trainer](task, answer, out);
    common_limits(answer, out);
}
