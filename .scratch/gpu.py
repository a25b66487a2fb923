import torch, time, louiskv, transformers, traceback
from tests.families import *
print(torch.__version__, transformers.__version__, torch.cuda.get_device_name())
dev="cuda"
bad=0
for f in FAMILIES:
    try:
        m=tiny(f).to(dev)
        for inp in (prompt(40),prompt(40,3,(0,9,20))):
            inp={k:v.to(dev) for k,v in inp.items()}
            ref=greedy(m,inp,40)
            for meth in (louiskv.Full(),louiskv.FullOffloaded(chunk_size=16),louiskv.LouisKV(budget=400,sink=4,window=16,dense_layers=0,unit_size=4,max_segment=8)):
                with louiskv.attach(m,meth) as c:
                    out=greedy(m,inp,40,past_key_values=c); c.check_integrity()
                ok=torch.equal(out,ref)
                if not ok: bad+=1; print(f,type(meth).__name__,ok)
            with louiskv.attach(m,louiskv.LouisKV(budget=40,sink=4,window=16,dense_layers=0,unit_size=4,max_segment=8)) as c:
                a=greedy(m,inp,60,past_key_values=c); c.check_integrity(); torch.inference_mode()(c.reset)(); b=greedy(m,inp,60,past_key_values=c)
                if not torch.equal(a,b): bad+=1; print(f,'rerun differs')
    except Exception as e:
        bad+=1; print(f,'FAIL',type(e),str(e)[:300]); traceback.print_exc()
print('families bad:',bad)
m=tiny("llama").to(dev); inp={k:v.to(dev) for k,v in prompt(40,2,(9,)).items()}
ref=greedy(m,inp,30,num_beams=3)
with louiskv.attach(m,louiskv.LouisKV(budget=400,sink=4,window=16,dense_layers=0,unit_size=4,max_segment=8)) as c:
    print('beam',torch.equal(greedy(m,inp,30,num_beams=3,past_key_values=c),ref)); c.check_integrity()
    print('chunk',torch.equal(greedy(m,inp,30,prefill_chunk_size=16),greedy(m,inp,30)))
# a larger shape: 8 layers of Llama-3.1-8B, random weights
from transformers import LlamaConfig, LlamaForCausalLM, DynamicCache
cfg=LlamaConfig(vocab_size=32000,hidden_size=4096,intermediate_size=14336,num_hidden_layers=8,num_attention_heads=32,num_key_value_heads=8,max_position_embeddings=131072,rope_parameters={"rope_type":"default","rope_theta":500000.0})
with torch.device(dev): big=LlamaForCausalLM._from_config(cfg,dtype=torch.bfloat16).eval()
big.set_attn_implementation("sdpa")
for n in (8192,32768):
    ids=torch.randint(3,32000,(1,n),device=dev)
    for meth in (None,louiskv.Full(),louiskv.LouisKV(budget=1024,tau=0.9),louiskv.LouisKV(budget=1024,tau=-1),louiskv.FullOffloaded()):
        import contextlib
        with (louiskv.attach(big,meth) if meth else contextlib.nullcontext(DynamicCache(config=cfg))) as c, torch.inference_mode():
            for w in range(2):
                if meth: c.reset()
                else: c=DynamicCache(config=cfg)
                torch.cuda.synchronize(); torch.cuda.reset_peak_memory_stats(); t=time.time(); o=big(ids,past_key_values=c,logits_to_keep=1); torch.cuda.synchronize(); ttft=time.time()-t
            nxt=o.logits[:,-1:].argmax(-1)
            for _ in range(3): big(nxt,past_key_values=c)
            torch.cuda.synchronize(); t=time.time()
            K=20 if not isinstance(meth,louiskv.FullOffloaded) else 3
            for _ in range(K): big(nxt,past_key_values=c)
            torch.cuda.synchronize(); dt=(time.time()-t)/K*1e3
            print(n,meth and type(meth).__name__,getattr(meth,'tau',''),'ttft %.3f s decode %.2f ms peak %.2f GiB'%(ttft,dt,torch.cuda.max_memory_allocated()/2**30),flush=True)
            if meth and isinstance(meth,louiskv.LouisKV): c.check_integrity() if n==8192 else None; print(c.report())
